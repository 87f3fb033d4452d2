"""What a model gives back word for word of the text it was trained on."""
