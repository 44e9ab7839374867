"""Metrics that accumulate over a domain, and confidence intervals of their scores."""
