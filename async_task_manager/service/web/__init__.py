"""The service's door: HTTP."""
