"""Workers: an ingest and an engine process per lease, and the node agent that starts them."""
