"""Clients: publish requests, await their responses."""
