"""Language models: generation with a KV cache, sampling, receipts of generations, an OpenAI-compatible server."""
