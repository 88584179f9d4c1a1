package lab_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/lab"
)

// Loss takes some packets and lets others pass; total loss and none are exact.
func TestLoss(t *testing.T) {
	l := boot(t, lab.Options{Name: "t-loss"})
	h := l.Hosts()[0]
	answered := func() int {
		out := on(t, h.Node, "sh", "-c", `busybox ping -q -c 200 -i 0.001 -W 1 `+lab.Gateway4+` | sed -n 's/.* \([0-9]*\) packets received.*/\1/p'`)
		n := 0
		for _, c := range out {
			n = n*10 + int(c-'0')
		}
		return n
	}
	for _, c := range []struct {
		loss     float64
		min, max int
	}{
		{0, 200, 200},
		{100, 0, 0},
		// 0.4*0.4 = 16 % come back: 32 of 200, sigma 5. Loss in one direction alone
		// would let 80 come back, sigma 7.
		{60, 5, 56},
		{0, 200, 200},
	} {
		if err := h.Impair(lab.Impairment{Loss: c.loss}); err != nil {
			t.Fatal(err)
		}
		if got := answered(); got < c.min || got > c.max {
			t.Errorf("at %v %% loss %d of 200 pings are answered, want %d to %d", c.loss, got, c.min, c.max)
		}
	}
}

// Delay works where the kernel can, and says what is missing where it cannot.
func TestDelay(t *testing.T) {
	l := boot(t, lab.Options{Name: "t-delay"})
	h := l.Hosts()[0]
	err := h.Impair(lab.Impairment{Delay: 200 * time.Millisecond})
	if err != nil {
		if !strings.Contains(err.Error(), "no netem") {
			t.Fatal(err)
		}
		if os.Getenv("PARTICLE_REQUIRE") == "netem" {
			t.Fatal(err)
		}
		t.Log("this kernel has no netem; the error was checked instead")
		return
	}
	begun := time.Now()
	on(t, h.Node, "busybox", "ping", "-c", "1", lab.Gateway4)
	if took := time.Since(begun); took < 200*time.Millisecond {
		t.Errorf("a ping over a link with 200 ms delay took %v", took)
	}
	if err := h.Impair(lab.Impairment{}); err != nil {
		t.Error(err)
	}
}
