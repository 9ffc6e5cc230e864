"""Markers of the testers of diffusers and transformers; pytest refuses unknown ones."""

DIFFUSERS = (
    "attention autoround big_accelerator bitsandbytes cache compile context_parallel cpu_offload"
    " gguf group_offload ip_adapter lora memory modelopt nightly quantization quanto sdnq"
    " single_file tensor_parallel torchao training"
)
TRANSFORMERS = (
    "accelerate_tests executorch_export_test flash_attn_3_test flash_attn_4_test flash_attn_test"
    " generate onnx_export_test openvino_export_test order timeout torch_compile_test"
    " torch_export_test"
)


def pytest_configure(config):
    for library, markers in (("diffusers", DIFFUSERS), ("transformers", TRANSFORMERS)):
        for marker in markers.split():
            config.addinivalue_line("markers", f"{marker}: one of {library}'s own")
