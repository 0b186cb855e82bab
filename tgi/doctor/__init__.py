"""`tgi doctor`: looks for whatever would keep a server from running on a machine, or from running well, and
says what to do about it.

A check is a small function that is given what there is to look at. What needs torch, or a card, is in
`probe`, which runs in processes of its own: neither a crash nor a hang in there hides what else was found.
"""
