"""The process that does the work, so that torch never enters napari's.

`appose` 0.12.0, made for this purpose, was tried and its source read. It starts in 0.08 s, is torch-free and opens no
port; but a busy worker goes on after its parent was killed, and `Service.kill` leaves the worker's children running.
A `print` without a newline inside a task merges with the protocol on standard output: the caller then waits for ever.
It has one cancel flag and no grace time instead of stop and cancel, and errors arrive as the text of a traceback,
without their class. Its shared arrays refuse bool and empty ones, and a service cannot be started again after a crash.
Hence this small package: `client` in the parent, `server` in the child, JSON lines on pipes, arrays through files.
"""
