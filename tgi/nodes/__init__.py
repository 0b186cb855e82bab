"""Ranks on the nodes of a Ray cluster, behind `--executor ray`.

Ray places and watches ranks; commands and reports do not pass through it. Four processes have a part:

    server (`server.py`) ─ socket pair ─▶ driver (`driver.py`), which imports Ray
       ▲                                     │ placement group, one actor per rank
       │                                     ▼
       └──────────── TCP, `handshake.py` ─▶ actor (`actor.py`) ─ socket pair ─▶ rank (`tgi.worker`)

A fault of Ray's client library ends the driver, and not the server, which has every token.
"""
