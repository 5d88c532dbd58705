"""``tortoise-rt serve``: speech over HTTP and WebSocket, for the clients that people have.

``app.py`` is the HTTP side, ``live.py`` the WebSocket; both hand what was asked (``fields.py``) to the ``Service``
(``service.py``), which takes it or refuses it, and says it on the scheduler. ``guard.py`` stands before all of it.
"""
