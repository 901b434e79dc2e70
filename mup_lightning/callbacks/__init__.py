"""What is watched while training: one small file each."""
