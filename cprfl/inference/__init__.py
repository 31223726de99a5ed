"""From images to scores: a checkpoint with its encoder, and the form in which MLflow loads it."""
