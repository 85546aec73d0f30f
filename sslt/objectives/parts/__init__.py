"""What objectives are made of: teachers, prototypes, decoders, masks. None of it is an objective by itself."""
