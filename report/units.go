package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// bytesText is a size with three significant digits, in binary units: 0 B, 512 B, 1.21 GiB.
func bytesText(n int64) string {
	const step = 1024
	if n < step {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, units := float64(n), []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := -1
	for v >= step && i < len(units)-1 {
		v /= step
		i++
	}
	// 1023.6 would read 1024: the next unit says it better.
	if v >= 999.5 && i < len(units)-1 {
		v /= step
		i++
	}
	return digits(v) + " " + units[i]
}

// flopsText is a count of floating-point operations in SI units: 3.00 GFLOP.
func flopsText(v float64) string { return siText(v) + "FLOP" }

func siText(v float64) string {
	units := []string{"", "k", "M", "G", "T", "P", "E", "Z", "Y"}
	i := 0
	for v >= 999.5 && i < len(units)-1 {
		v /= 1000
		i++
	}
	return digits(v) + " " + units[i]
}

// digits is a number with three significant digits and no exponent.
func digits(v float64) string {
	switch a := math.Abs(v); {
	case a >= 99.95 || a == 0:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
}

// durationText is a time in at most two units: 250 ms, 9.50 s, 1m40s, 2h03m, 3d04h.
func durationText(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	if d > 0 && d < 999500*time.Microsecond {
		return digits(float64(d)/float64(time.Millisecond)) + " ms"
	}
	if d < 59950*time.Millisecond {
		return digits(d.Seconds()) + " s"
	}
	d = d.Round(time.Second)
	switch {
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

// countText is a count with separated thousands: 1,234,567.
func countText(n int64) string {
	s := strconv.FormatInt(n, 10)
	sign := ""
	if s[0] == '-' {
		sign, s = "-", s[1:]
	}
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return sign + b.String()
}
