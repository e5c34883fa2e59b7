"""What `worker.py` asks torch."""

__version__ = "2.9.1"


class cuda:  # noqa: N801  (a module of torch's)
    @staticmethod
    def get_device_capability(device: int) -> tuple[int, int]:
        return 8, 6 + device

    @staticmethod
    def get_device_name(device: int) -> str:
        return f"NVIDIA GeForce RTX 3070 ({device})"
