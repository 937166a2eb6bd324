"""The holder of weights: a process that owns the packed weights of the served layers and lends them to the workers.

    __main__    the process: a child of the watchdog
    holder      reads the checkpoint, fills one block of memory per layer, writes the manifest
    borrower    maps what a manifest names, in a worker
    manifest    the file between the two
    places      where each tensor lies in its layer's block
    files       blocks on the CPU: files on tmpfs
    device      blocks on a GPU: device memory, lent through CUDA IPC
    driver      the few calls of the CUDA driver that this takes

Weights are in memory once, however many workers use them, and a worker's successor maps them in the time of a few
system calls, whatever their size.
"""
