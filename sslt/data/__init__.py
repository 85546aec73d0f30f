"""Where samples come from (sources), how they are kept (cache), in which order they come (streams), how they are seen (views)."""
