"""Learn2PD: the filter that its scheduler decodes with; `dllm.training` trains one."""
