"""Our decoding inside what people already run: transformers, Ray, SGLang."""
