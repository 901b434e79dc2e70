"""What a run would use and cost, before it runs: values, FLOPs, memory."""
