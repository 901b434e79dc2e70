"""Tables and pictures from runs' result files and TensorBoard logs; nothing here trains."""
