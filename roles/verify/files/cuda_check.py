"""Let each GPU fill its memory, read it back, and measure how fast it was. For a container that has GPUs.

It calls CUDA's driver interface by ctypes, so it needs neither torch nor a toolkit. Prints a line for each
GPU; ends with status 1 and the reason when one does not compute, computes wrong, or is slower than told.
"""

import ctypes
import sys
import time

SIZE = 256 * 1024**2
ROUNDS = 20
PATTERN = 0xC0FFEE01


def main(least: float) -> None:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        sys.exit(f"the container has no driver library ({error}); look at the container toolkit")
    call(cuda, "cuInit", 0)
    count = ctypes.c_int()
    call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        sys.exit("the container sees no GPU")
    for index in range(count.value):
        speed = fill(cuda, index)
        print(f"GPU {index}: {speed:.0f} GB/s")
        if speed < least:
            sys.exit(f"GPU {index} fills its memory with {speed:.1f} GB/s; at least {least:g} are wanted")


def fill(cuda: ctypes.CDLL, index: int) -> float:
    """GB (10^9 bytes) a second that a GPU writes, once what it wrote has been read back and found right."""
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call(cuda, "cuCtxSetCurrent", context)
    call(cuda, "cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(SIZE))
    words = ctypes.c_size_t(SIZE // 4)
    call(cuda, "cuMemsetD32_v2", memory, PATTERN, words)  # the first is slower
    call(cuda, "cuCtxSynchronize")
    started = time.perf_counter()
    for _ in range(ROUNDS):
        call(cuda, "cuMemsetD32_v2", memory, PATTERN, words)
    call(cuda, "cuCtxSynchronize")
    seconds = time.perf_counter() - started
    read = (ctypes.c_uint32 * 1024)()
    last = ctypes.c_uint64(memory.value + SIZE - ctypes.sizeof(read))
    call(cuda, "cuMemcpyDtoH_v2", read, last, ctypes.c_size_t(ctypes.sizeof(read)))
    call(cuda, "cuMemFree_v2", memory)
    call(cuda, "cuDevicePrimaryCtxRelease_v2", device)
    if set(read) != {PATTERN}:
        sys.exit(f"GPU {index} does not hold what was written to it")
    return SIZE * ROUNDS / seconds / 1e9


def call(cuda: ctypes.CDLL, name: str, *arguments: object) -> None:
    error = getattr(cuda, name)(*arguments)
    if error:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(error, ctypes.byref(text))
        sys.exit(f"{name}: {text.value.decode() if text.value else error}")


if __name__ == "__main__":
    main(float(sys.argv[1]))
