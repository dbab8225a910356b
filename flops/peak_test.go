package flops

import (
	"math"
	"testing"
)

// One row per name that NVML reports. TFLOP/s, dense; 0 = none.
func TestPeakTable(t *testing.T) {
	for _, c := range []struct {
		name                               string
		fp64, fp32, tf32, bf16, fp16, int8 float64
		fp8, fp4                           float64
	}{
		{"NVIDIA H100 80GB HBM3", 67, 67, 494.7, 989.4, 989.4, 1979, 1979, 0},
		{"NVIDIA GH200 480GB", 67, 67, 494.7, 989.4, 989.4, 1979, 1979, 0},
		{"NVIDIA GH200 120GB", 67, 67, 494.7, 989.4, 989.4, 1979, 1979, 0},
		{"NVIDIA GH200 144G HBM3e", 67, 67, 494.7, 989.4, 989.4, 1979, 1979, 0},
		{"NVIDIA H200", 67, 67, 494.7, 989.4, 989.4, 1979, 1979, 0},
		{"NVIDIA H800", 0, 67, 494.7, 989.4, 989.4, 1979, 1979, 0},
		{"NVIDIA H100 PCIe", 51, 51, 378, 756, 756, 1513, 1513, 0},
		{"NVIDIA H800 PCIe", 0, 51, 378, 756, 756, 1513, 1513, 0},
		{"NVIDIA H100 NVL", 60, 60, 417.5, 835.5, 835.5, 1671, 1671, 0},
		{"NVIDIA H200 NVL", 60, 60, 417.5, 835.5, 835.5, 1671, 1671, 0},
		{"NVIDIA B200", 40, 80, 1125, 2250, 2250, 4500, 4500, 9000},
		{"NVIDIA GB200", 45, 90, 1250, 2500, 2500, 5000, 5000, 10000},
		{"NVIDIA B300 SXM6 AC", 0, 0, 0, 2250, 2250, 0, 4500, 13500},
		{"NVIDIA GB300", 0, 0, 0, 2500, 2500, 0, 5000, 15000},
		{"NVIDIA A100-SXM4-40GB", 19.5, 19.5, 156, 312, 312, 624, 0, 0},
		{"NVIDIA A100-SXM4-80GB", 19.5, 19.5, 156, 312, 312, 624, 0, 0},
		{"NVIDIA A100-PCIE-40GB", 19.5, 19.5, 156, 312, 312, 624, 0, 0},
		{"NVIDIA A100 80GB PCIe", 19.5, 19.5, 156, 312, 312, 624, 0, 0},
		{"A100-SXM4-40GB", 19.5, 19.5, 156, 312, 312, 624, 0, 0},
		{"NVIDIA A800-SXM4-40GB", 19.5, 19.5, 156, 312, 312, 624, 0, 0},
		{"NVIDIA A800-SXM4-80GB", 19.5, 19.5, 156, 312, 312, 624, 0, 0},
		{"NVIDIA A800 80GB PCIe", 19.5, 19.5, 156, 312, 312, 624, 0, 0},
		{"NVIDIA A30", 10.3, 10.3, 82, 165, 165, 330, 0, 0},
		{"NVIDIA A40", 0, 37.4, 74.8, 149.7, 149.7, 299, 0, 0},
		{"NVIDIA RTX A6000", 0, 38.7, 77.4, 154.8, 154.8, 310, 0, 0},
		{"NVIDIA A10", 0, 31.2, 62.5, 125, 125, 250, 0, 0},
		{"NVIDIA A10G", 0, 31.5, 35, 70, 70, 140, 0, 0},
		{"NVIDIA L4", 0, 30.3, 60, 121, 121, 242, 242, 0},
		{"NVIDIA L40", 0, 90.5, 90.5, 181, 181, 362, 362, 0},
		{"NVIDIA L40S", 0, 91.6, 183, 362, 362, 733, 733, 0},
		{"NVIDIA RTX 6000 Ada Generation", 0, 91.1, 182, 364, 364, 728, 728, 0},
		{"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 0, 126, 252, 503.8, 503.8, 0, 1008, 0},
		{"NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 0, 110, 0, 438.9, 438.9, 0, 0, 0},
		{"Tesla T4", 0, 8.1, 0, 0, 65, 130, 0, 0},
		{"Tesla V100-SXM2-16GB", 7.8, 15.7, 0, 0, 125, 0, 0, 0},
		{"Tesla V100-SXM2-32GB", 7.8, 15.7, 0, 0, 125, 0, 0, 0},
		{"Tesla V100-SXM3-32GB", 7.8, 15.7, 0, 0, 125, 0, 0, 0},
		{"Tesla V100-PCIE-16GB", 7, 14, 0, 0, 112, 0, 0, 0},
		{"Tesla V100-PCIE-32GB", 7, 14, 0, 0, 112, 0, 0, 0},
		{"Tesla V100S-PCIE-32GB", 8.2, 16.4, 0, 0, 130, 0, 0, 0},
		{"NVIDIA GeForce RTX 3090", 0, 35.6, 35.6, 71, 71, 284, 0, 0},
		{"NVIDIA GeForce RTX 4080", 0, 48.7, 48.7, 97.5, 97.5, 390, 195, 0},
		{"NVIDIA GeForce RTX 4090", 0, 82.6, 82.6, 165.2, 165.2, 660.6, 330.3, 0},
		{"NVIDIA GeForce RTX 5090", 0, 104.8, 104.8, 209.5, 209.5, 838, 419, 0},
	} {
		p, ok := PeakOf(c.name)
		if !ok || p.Name != c.name || p.Source != "table" {
			t.Errorf("%s: %+v %v", c.name, p, ok)
			continue
		}
		for dtype, want := range map[string]float64{
			"float64": c.fp64, "float32": c.fp32, "tfloat32": c.tf32, "bfloat16": c.bf16, "float16": c.fp16,
			"int8": c.int8, "float8_e4m3fn": c.fp8, "float8_e5m2": c.fp8, "float4_e2m1fn_x2": c.fp4,
		} {
			got, ok := p.Of(dtype)
			if ok != (want > 0) || math.Abs(got-want*1e12) > 1 {
				t.Errorf("%s %s: %g %v, want %g", c.name, dtype, got, ok, want*1e12)
			}
		}
	}
}

// Names that only look like one in the table: a part of a name is no evidence.
func TestNamesWithoutPeak(t *testing.T) {
	for _, name := range []string{
		"", "NVIDIA", "H100", "NVIDIA H100", "NVIDIA H100 SXM", "h100 80gb hbm3", "NVIDIA H100 80GB HBM3 ", "NVIDIA H20", "NVIDIA L2", "NVIDIA L20",
		"NVIDIA L4S", "NVIDIA RTX A4000", "NVIDIA A100-SXM-64GB", "NVIDIA A100-40C", "GRID A100-40C", "NVIDIA A2", "NVIDIA A16",
		"NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4080 SUPER", "NVIDIA GeForce RTX 3080",
		"NVIDIA GeForce RTX 3090 Ti", "NVIDIA RTX 6000D", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA Tesla", "NVIDIA B300", "AMD Instinct MI300X",
	} {
		if p, ok := PeakOf(name); ok {
			t.Errorf("%q has a peak: %+v", name, p)
		}
	}
}

func TestMIGScalesBySlice(t *testing.T) {
	for _, c := range []struct {
		name string
		bf16 float64
	}{
		{"NVIDIA A100-SXM4-40GB MIG 1g.5gb", 312e12 / 7},
		{"NVIDIA A100-SXM4-80GB MIG 3g.40gb", 312e12 * 3 / 7},
		{"NVIDIA H100 80GB HBM3 MIG 7g.80gb", 989.4e12},
		{"NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", 989.4e12 / 7},
		{"NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb", 989.4e12 / 7},
		{"NVIDIA A30 MIG 2g.12gb", 165e12 / 2},
	} {
		p, ok := PeakOf(c.name)
		if got, _ := p.Of("bfloat16"); !ok || math.Abs(got-c.bf16) > 1 || p.Source != "mig" || p.Name != c.name {
			t.Errorf("%s: %+v %v, want %g", c.name, p, ok, c.bf16)
		}
	}
	for _, name := range []string{
		"NVIDIA L40S MIG", "NVIDIA A100-SXM4-40GB MIG ", "NVIDIA A100-SXM4-40GB MIG 8g.5gb", "NVIDIA A100-SXM4-40GB MIG 0g.5gb",
		"NVIDIA A100-SXM4-40GB MIG xg", "NVIDIA A30 MIG 5g.24gb", "NVIDIA H1 MIG 1g.5gb", "NVIDIA A100-SXM4-40GB MIG 1g.5gb MIG 1g.5gb",
	} {
		if p, ok := PeakOf(name); ok {
			t.Errorf("%q has a peak: %+v", name, p)
		}
	}
	// With the multiprocessors known, the share is exact: 16 of an H100's 132.
	p, _ := PeakOf("NVIDIA H100 80GB HBM3")
	if got, _ := p.Scaled(16.0 / 132).Of("bfloat16"); math.Abs(got-989.4e12*16/132) > 1 {
		t.Errorf("%g", got)
	}
	if whole, _ := p.Of("bfloat16"); whole != 989.4e12 {
		t.Errorf("scaling changed the whole device: %g", whole)
	}
}
