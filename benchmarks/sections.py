"""What can be measured on each kind of device."""

from typing import Callable, Dict, Iterator, List

from benchmarks import (
    cases_cuda,
    cases_cuda_decode,
    cases_decode,
    cases_family,
    cases_hf,
    cases_layer,
    cases_native,
    cases_ops,
    cases_packing,
    cases_scaling,
    cases_startup,
    cases_varlen,
)
from benchmarks.rows import Options, Row

Runner = Callable[[Options], Iterator[List[Row]]]

SECTIONS: Dict[str, Dict[str, Runner]] = {
    "cpu": {
        "ops": cases_ops.run,
        "rwkv7": cases_ops.run_rwkv7,
        "decode": cases_decode.run,
        "layer": cases_layer.run,
        "family": cases_family.run,
        "native": cases_native.run,
        "varlen": cases_varlen.run,
        "packing": cases_packing.run,
        "scaling": cases_scaling.run,
        "startup": cases_startup.run,
        "hf": cases_hf.run,
        "hf_mamba": cases_hf.run_mamba,
    },
    "cuda": {"ops": cases_cuda.run, "decode": cases_cuda_decode.run, "scaling": cases_scaling.run},
}
