"""What is known of the inputs of each matrix: a text, run through the model layer by layer in numpy."""
