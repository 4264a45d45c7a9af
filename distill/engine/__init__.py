"""Training: launch, engines, learning rate, checkpoints, the loop, evaluation."""
