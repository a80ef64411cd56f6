"""The joiner: where the branches of pipelines meet."""
