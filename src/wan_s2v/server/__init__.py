"""Videos over HTTP: a queue on disk, a process per device that makes them, and the routes in front.

The process that answers clients never imports PyTorch and never decodes what they send.
"""
