"""Answering requests over HTTP."""
