"""What turns a source's split into samples that an encoder takes: sizes, tokens, vocabularies."""
