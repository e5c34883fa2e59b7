class KvCacheConfig:
    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)
