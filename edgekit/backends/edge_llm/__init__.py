"""TensorRT Edge-LLM: NVIDIA's engines for Jetson Thor and Orin, in a Python of its own."""
