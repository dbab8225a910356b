package flops

import "strings"

// table returns a device's dense peaks in TFLOP/s. The names are those of the driver's list of supported products,
// which NVML reports; drivers before 470 leave out the leading "NVIDIA", so it is not compared. The figures are the
// vendor's data sheets, halved where they state the rate with 2:4 sparsity; float16 and bfloat16 are with 32-bit
// accumulation, which GeForce parts and the A10G and L40 do at half the rate of their professional siblings.
//
// Left out on purpose: products that share one name with different chips (RTX 3080, H100 without suffix), custom parts
// (A100-SXM-64GB), power-capped siblings without a published figure, virtual GPUs.
func table(name string) (rates, bool) {
	switch strings.TrimPrefix(name, "NVIDIA ") {
	case "H100 80GB HBM3", "GH200 480GB", "GH200 120GB", "GH200 144G HBM3e", "H200":
		return rates{fp64: 67, fp32: 67, tf32: 494.7, bf16: 989.4, fp16: 989.4, fp8: 1979, int8: 1979}, true
	case "H800":
		// An export part: double precision is cut to a figure the sources do not agree on.
		return rates{fp32: 67, tf32: 494.7, bf16: 989.4, fp16: 989.4, fp8: 1979, int8: 1979}, true
	case "H100 PCIe":
		return rates{fp64: 51, fp32: 51, tf32: 378, bf16: 756, fp16: 756, fp8: 1513, int8: 1513}, true
	case "H800 PCIe":
		return rates{fp32: 51, tf32: 378, bf16: 756, fp16: 756, fp8: 1513, int8: 1513}, true
	case "H100 NVL", "H200 NVL":
		return rates{fp64: 60, fp32: 60, tf32: 417.5, bf16: 835.5, fp16: 835.5, fp8: 1671, int8: 1671}, true
	case "B200":
		return rates{fp64: 40, fp32: 80, tf32: 1125, bf16: 2250, fp16: 2250, fp8: 4500, fp4: 9000, int8: 4500}, true
	case "GB200":
		return rates{fp64: 45, fp32: 90, tf32: 1250, bf16: 2500, fp16: 2500, fp8: 5000, fp4: 10000, int8: 5000}, true
	case "B300 SXM6 AC":
		return rates{bf16: 2250, fp16: 2250, fp8: 4500, fp4: 13500}, true
	case "GB300":
		return rates{bf16: 2500, fp16: 2500, fp8: 5000, fp4: 15000}, true
	case "A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100 80GB PCIe", "A800-SXM4-40GB", "A800-SXM4-80GB",
		"A800 80GB PCIe":
		return rates{fp64: 19.5, fp32: 19.5, tf32: 156, bf16: 312, fp16: 312, int8: 624}, true
	case "A30":
		return rates{fp64: 10.3, fp32: 10.3, tf32: 82, bf16: 165, fp16: 165, int8: 330}, true
	case "A40":
		return rates{fp32: 37.4, tf32: 74.8, bf16: 149.7, fp16: 149.7, int8: 299}, true
	case "RTX A6000":
		return rates{fp32: 38.7, tf32: 77.4, bf16: 154.8, fp16: 154.8, int8: 310}, true
	case "A10":
		return rates{fp32: 31.2, tf32: 62.5, bf16: 125, fp16: 125, int8: 250}, true
	case "A10G":
		return rates{fp32: 31.5, tf32: 35, bf16: 70, fp16: 70, int8: 140}, true
	case "L4":
		return rates{fp32: 30.3, tf32: 60, bf16: 121, fp16: 121, fp8: 242, int8: 242}, true
	case "L40":
		return rates{fp32: 90.5, tf32: 90.5, bf16: 181, fp16: 181, fp8: 362, int8: 362}, true
	case "L40S":
		return rates{fp32: 91.6, tf32: 183, bf16: 362, fp16: 362, fp8: 733, int8: 733}, true
	case "RTX 6000 Ada Generation":
		return rates{fp32: 91.1, tf32: 182, bf16: 364, fp16: 364, fp8: 728, int8: 728}, true
	case "RTX PRO 6000 Blackwell Workstation Edition":
		return rates{fp32: 126, tf32: 252, bf16: 503.8, fp16: 503.8, fp8: 1008}, true
	case "RTX PRO 6000 Blackwell Max-Q Workstation Edition":
		return rates{fp32: 110, bf16: 438.9, fp16: 438.9}, true
	case "Tesla T4":
		// Tensor cores of compute capability 7.5 know neither bfloat16 nor TF32.
		return rates{fp32: 8.1, fp16: 65, int8: 130}, true
	case "Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB":
		return rates{fp64: 7.8, fp32: 15.7, fp16: 125}, true
	case "Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB":
		return rates{fp64: 7, fp32: 14, fp16: 112}, true
	case "Tesla V100S-PCIE-32GB":
		return rates{fp64: 8.2, fp32: 16.4, fp16: 130}, true
	case "GeForce RTX 3090":
		return rates{fp32: 35.6, tf32: 35.6, bf16: 71, fp16: 71, int8: 284}, true
	case "GeForce RTX 4080":
		return rates{fp32: 48.7, tf32: 48.7, bf16: 97.5, fp16: 97.5, fp8: 195, int8: 390}, true
	case "GeForce RTX 4090":
		return rates{fp32: 82.6, tf32: 82.6, bf16: 165.2, fp16: 165.2, fp8: 330.3, int8: 660.6}, true
	case "GeForce RTX 5090":
		return rates{fp32: 104.8, tf32: 104.8, bf16: 209.5, fp16: 209.5, fp8: 419, int8: 838}, true
	}
	return rates{}, false
}
