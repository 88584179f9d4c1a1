package member_test

import (
	"fmt"
	"testing"
	"time"
)

// A disk is full for hours. Each network asks it a few times a minute, people are told
// once, and not by a disk that the log fills, too.
func TestFullDiskAndManyNetworks(t *testing.T) {
	inWorld(t, 1, func(w *world, hosts []*host) {
		a, said := hosts[0], &lines{count: map[string]int{}}
		const many = 20
		for i := range many {
			spec := jobs(fmt.Sprintf("10.%d.0.0/16", i))
			spec.Name = fmt.Sprintf("jobs%d", i)
			if err := a.create(spec); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		a.disk.fail(true)
		w.log.Logger.AddHook(said)
		time.Sleep(time.Hour)
		a.disk.mu.Lock()
		before := a.disk.puts
		a.disk.mu.Unlock()
		time.Sleep(time.Minute)
		a.disk.mu.Lock()
		if asked := a.disk.puts - before; asked > 20*many {
			t.Errorf("%d networks have asked the disk %d times in a minute", many, asked)
		}
		a.disk.mu.Unlock()
		said.mu.Lock()
		told := 0
		for _, n := range said.count {
			told += n
		}
		said.mu.Unlock()
		if told == 0 || told > many {
			t.Errorf("%d lines were logged", told)
		}
		a.disk.fail(false)
		time.Sleep(time.Minute)
		all, err := a.disk.All()
		if err != nil {
			t.Fatal(err)
		}
		for id, k := range all {
			if age := a.wall().Sub(k.Verified.Wall); id != "list" && age > 11*time.Minute {
				t.Errorf("what the disk has of %s is %s old", id, age)
			}
		}
	})
}
