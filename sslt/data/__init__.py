"""Where samples come from (sources), what encoders take of them (prepare), their order (streams) and how they are seen (views)."""
