"""What a run leaves for people to read: pictures, tables and the record of its curves."""
