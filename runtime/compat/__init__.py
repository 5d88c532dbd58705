"""The reference's modules by their own names and signatures: a program changes its imports and nothing else."""
