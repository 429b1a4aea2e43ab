"""Packaging of ddim_jax."""

from setuptools import find_packages, setup

DOCS = ["mkdocs<2", "mkdocs-material", "mkdocstrings-python"]

setup(
    name="ddim_jax",
    version="0.2.0",
    description="Few-step diffusion in JAX: samplers, distillation, guidance",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # configs/ goes into the wheel beside the weights, so that --config=NAME finds it anywhere
    packages=[*find_packages(include=["ddim_jax", "ddim_jax.*"]), "ddim_jax.assets.configs"],
    package_dir={"ddim_jax.assets.configs": "configs"},
    package_data={
        "ddim_jax": ["py.typed"],
        "ddim_jax.assets": ["*.npz", "*.safetensors", "LICENSES.md"],
        "ddim_jax.export": ["page/*"],
        "ddim_jax.serve": ["*.html"],
    },
    entry_points={"console_scripts": ["ddim-jax = ddim_jax.__main__:main"]},
    # the oldest of each are tested together, see CONTRIBUTING.md
    install_requires=[
        "absl-py>=2.1",
        "chex>=0.1.90",
        "diffrax>=0.7.2",
        "flatbuffers>=24.3.25",  # jax.export needs it and does not say so
        "flax>=0.12,<0.13",
        "grain>=0.2.15",
        "importlib_resources>=6.0",
        "jax>=0.8,<0.13",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "numpy>=2",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30,<0.13",
        "pillow>=10.3",
        "safetensors>=0.4.3",
        "scipy>=1.13",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "hub": ["huggingface_hub"],
        "video": ["imageio-ffmpeg"],
        # and jax2onnx with --no-deps: see docs/deploy.md
        "onnx": ["onnx>=1.20.1", "onnx-ir", "onnxruntime>=1.24.1", "sympy"],
        "litert": ["ai-edge-litert", "ai-edge-quantizer", "litert-converter"],
        "serve": ["fastapi", "uvicorn", "uvloop; sys_platform != 'win32'"],
        "ray": ["fastapi", "ray[serve]>=2.60", "uvicorn"],
        "demo": ["gradio"],
        "docs": DOCS,
        "notebooks": ["ipykernel", "nbclient"],
        "test": [
            *("mypy==2.4.1", "pytest", "pytest-xdist", "ruff"),
            *("fastapi", "httpx", "imageio-ffmpeg", "uvicorn", *DOCS),
        ],
        "parity": [
            "diffusers",
            "pytorch-fid",
            "torch",
            "torch-fidelity",
            "torchsde",
            "torchvision",
            "transformers",
        ],
    },
)
