"""What every test runs under: eight simulated CPU devices and strict rank promotion (warnings are errors, pyproject.toml).

With JAX_PLATFORMS=cuda they run on a GPU, those that need no eight devices: `JAX_PLATFORMS=cuda pytest tests/model/test_on_gpu.py`.
"""

import atexit
import importlib.util
import os
import pathlib
import shutil
import tempfile

# Any other value, and none, may be of somebody's shell.
os.environ["JAX_PLATFORMS"] = "cuda" if os.environ.get("JAX_PLATFORMS") == "cuda" else "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The tests run many small programs once or twice: compiling them takes longer than what XLA's costly passes save. They are on
# wherever a run is more than a test (train.py, benchmarks), and JAX_DISABLE_MOST_OPTIMIZATIONS=0 puts them on here.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(os.environ["JAX_PLATFORMS"] == "cpu")))
# Many tests compile the same programs, some of them in processes of their own: each is compiled once in a session. The
# workers of pytest-xdist inherit the folder of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxbert-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
if os.environ["JAX_PLATFORMS"] != "cpu":
    # Workers share the GPU's memory, and what the tests compare is float32 and not TF32.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Nothing in the tests may reach for a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"

# The CUDA build of torch brings triton, which crashes the process when TensorFlow was loaded before it.
if importlib.util.find_spec("triton"):
    importlib.import_module("triton")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# Files of long tests, the longest first: of one that began last, the other cores would await the end.
LONG = (
    "test_run.py",
    "notebooks/test_notebook.py",
    "finetune/test_finetune.py",
    "finetune/test_lora.py",
    "finetune/test_seeds.py",
    "finetune/test_search.py",
    "examples/test_examples.py",
    "finetune/test_other_tasks.py",
    "finetune/test_forms.py",
    "train/test_step.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first."""
    place = {REPOSITORY / "tests" / name: n for n, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real text and vocabularies beside the checkout; a test that needs them is skipped where there are none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data (real text and vocabularies), which is not beside this checkout")
    return folder
