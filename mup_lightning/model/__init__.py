"""Blocks of GPT-2, Llama, Qwen3 and Mixtral, with multipliers, declared parameter roles and named measuring points."""
