"""The service of a gallery: HTTP endpoints, two pages and metrics, in one process.

`app.create` makes the ASGI application, `programs.serve` runs it. Handlers parse and check;
queries meet in a `Batcher`, which embeds and searches for many at once.
"""
