"""What reads files: images, texts and tables as anybody may have made them, and the data sets made of them."""
