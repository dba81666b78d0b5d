"""Training: the objective, the engines that carry out steps, the loop and its journal."""
