"""The command line, the embedded stack and the example fleet."""
