"""How kernels are loaded and started, against a driver that writes down what it is asked."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from nestor.errors import ArtifactError, InternalError, Unsupported
from nestor.runtime import cuda, cuda_graph
from nestor.runtime.cuda_graph import CudaGraph

DRIVER = r"""
#include <string.h>
typedef unsigned long long u64;
u64 asked[16];
u64 given[8];
int fail;
int cuInit(unsigned flags) { return 0; }
int cuGetErrorString(int status, const char **text) { *text = "as asked"; return 0; }
int cuDeviceGet(int *device, int number) { *device = 40 + number; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)(u64)(device * 10); return 0;
}
int cuCtxSetCurrent(void *context) { asked[0] = (u64)context; return 0; }
int cuModuleLoadData(void **module, const void *code) {
  if (memcmp(code, "good", 4)) return 209;
  *module = (void *)0x7000000000; return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  if (strcmp(name, "kernel")) return 500;
  *function = (char *)module + 1; return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  asked[1] = (u64)function; asked[2] = attribute; asked[3] = value; return 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **values, void **extra) {
  if (fail) return fail;
  u64 own[] = {(u64)function, gx, gy, gz, bx, by, bz, shared, (u64)stream, (u64)extra};
  memcpy(asked + 4, own, sizeof own);
  for (int n = 0; n < 5; n++) given[n] = *(u64 *)values[n];
  return 0;
}
typedef struct {
  void *function; unsigned grid[3], block[3], shared; void **values, **extra, *kernel, *context;
} Node;
u64 nodes[4][8];
int count, started, destroyed;
static void keep(u64 number, const Node *node) {
  u64 own[] = {(u64)node->function, node->grid[0], node->block[0], node->shared,
               *(u64 *)node->values[0], *(u64 *)node->values[1],
               (u64)node->kernel | (u64)node->context | (u64)node->extra,
               node->grid[1] * node->grid[2] * node->block[1] * node->block[2]};
  memcpy(nodes[number], own, sizeof own);
}
int cuGraphCreate(void **graph, unsigned flags) { *graph = (void *)0x5000000000; return flags; }
int cuGraphAddKernelNode_v2(void **node, void *graph, void **before, size_t n, const Node *given) {
  if (graph != (void *)0x5000000000 || n != (count > 0)) return 1;
  if (n && before[0] != (void *)(0x6000000000 + count - 1)) return 2;
  keep(count, given);
  *node = (void *)(0x6000000000 + count++); return 0;
}
int cuGraphInstantiateWithFlags(void **ready, void *graph, u64 flags) {
  *ready = (char *)graph + 7; return flags;
}
int cuGraphExecKernelNodeSetParams_v2(void *ready, void *node, const Node *given) {
  if (ready != (void *)0x5000000007) return 3;
  keep((u64)node - 0x6000000000, given); return 0;
}
int cuGraphLaunch(void *ready, void *stream) {
  if (ready != (void *)0x5000000007) return 3;
  started += (u64)stream; return 0;
}
int cuGraphExecDestroy(void *ready) { destroyed += ready == (void *)0x5000000007; return 0; }
int cuGraphDestroy(void *graph) { destroyed += graph == (void *)0x5000000000; return 0; }
"""

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    source, file = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(DRIVER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", file, source], check=True)
    made = cuda.Driver(str(file))
    for module in (cuda, cuda_graph):
        monkeypatch.setattr(module, "driver", lambda: made)
    return ctypes.CDLL(str(file))


def words(library: ctypes.CDLL, name: str, count: int) -> list[int]:
    return list((ctypes.c_uint64 * count).in_dll(library, name))


def test_a_kernel_is_started(library: ctypes.CDLL) -> None:
    cuda.driver().use_device(2)
    kernel = cuda.CudaKernel(b"good code", "kernel", warps=8, shared_bytes=100 << 10, parameters=5)
    kernel.launch(1 << 20, [(1 << 47) + 5, 16, 3], stream=99)
    asked = words(library, "asked", 14)
    assert asked[0] == 420
    assert asked[1:4] == [0x7000000001, 8, 100 << 10]
    assert asked[4:] == [0x7000000001, 1 << 20, 1, 1, 256, 1, 1, 100 << 10, 99, 0]
    # What Triton adds at the end gets no memory.
    assert words(library, "given", 5) == [(1 << 47) + 5, 16, 3, 0, 0]


def test_little_shared_memory_is_not_asked_for(library: ctypes.CDLL) -> None:
    cuda.CudaKernel(b"good", "kernel", warps=4, shared_bytes=48 << 10, parameters=5)
    assert words(library, "asked", 4)[1:] == [0, 0, 0]


def test_failures(library: ctypes.CDLL) -> None:
    with pytest.raises(ArtifactError, match="cuModuleLoadData failed with 209: as asked"):
        cuda.CudaKernel(b"other", "kernel", warps=4, shared_bytes=0, parameters=5)
    with pytest.raises(InternalError, match="cuModuleGetFunction failed with 500"):
        cuda.CudaKernel(b"good", "another", warps=4, shared_bytes=0, parameters=5)
    kernel = cuda.CudaKernel(b"good", "kernel", warps=4, shared_bytes=0, parameters=5)
    with pytest.raises(Unsupported, match="4294967296 programs"):
        kernel.launch(1 << 32, [], stream=0)
    ctypes.c_int.in_dll(library, "fail").value = 2
    with pytest.raises(InternalError, match="cuLaunchKernel failed with 2"):
        kernel.launch(1, [], stream=0)


def test_a_graph_of_kernels(library: ctypes.CDLL) -> None:
    kernel = cuda.CudaKernel(b"good", "kernel", warps=8, shared_bytes=1000, parameters=5)
    graph = CudaGraph()
    for n, programs in enumerate((10, 20, 30)):
        before = [0, 1, 2][:n]
        assert graph.add(kernel, programs, [1 << 46, programs], before[-1:]) == n
    graph.finish()
    graph.start(stream=5)
    graph.change(1, [1 << 45, 9])
    graph.start(stream=6)
    kept = [words(library, "nodes", 32)[8 * n : 8 * n + 8] for n in range(3)]
    assert kept == [
        [0x7000000001, 10, 256, 1000, 1 << 46, 10, 0, 1],
        [0x7000000001, 20, 256, 1000, 1 << 45, 9, 0, 1],
        [0x7000000001, 30, 256, 1000, 1 << 46, 30, 0, 1],
    ]
    assert ctypes.c_int.in_dll(library, "started").value == 11
    with pytest.raises(Unsupported, match="4294967296 programs"):
        graph.add(kernel, 1 << 32, [], [])
    del graph
    assert ctypes.c_int.in_dll(library, "destroyed").value == 2


def test_drivers_without_graphs(library: ctypes.CDLL) -> None:
    assert cuda.driver().has("cuGraphLaunch")
    assert not cuda.driver().has("cuOfTomorrow")


def test_without_a_driver() -> None:
    with pytest.raises(Unsupported, match=r"NVIDIA's driver is not there[\s\S]*fix: install it"):
        cuda.Driver("libno-such-driver.so.1")
