"""The chunk form on a GPU's matrix units: bfloat16 products, float32 sums, decays and states; dense and packed."""
