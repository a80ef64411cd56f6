"""A broker and a Redis on loopback, found or started for one machine."""
