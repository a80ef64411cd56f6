"""Drawings of pipelines, for terminals and as SVG."""
