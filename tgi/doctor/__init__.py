"""`tgi doctor`: finds what would keep a server from running on a machine, or from running well.

A check is a small function from a `Machine` to a `Check`. `probe` tries the device in processes of its own,
as ranks: it needs torch, and neither a crash nor a hang in it hides what the other checks found.
"""
