package control_test

import (
	"testing"
	"time"

	"github.com/particle-net/particle/control"
)

// What a list has and cannot be read is no loss, and stays as it was known.
func TestUnreadStays(t *testing.T) {
	c := &clock{}
	r := listed(c)
	r.Update(update{Deleted: []control.Route{two}, Instance: "a", Revision: 8}, c.now)
	v := r.Update(update{Whole: true, Put: []control.Route{own}, Unread: []control.Route{
		{Prefix: one.Prefix, Node: one.Node}, {Prefix: two.Prefix, Node: two.Node}, {Prefix: tree.Prefix, Node: tree.Node}, route(4, "10.0.4.0/24"),
	}, Instance: "a", Revision: 9}, c.now)
	if v.Loss != "" || r.Count(control.Current) != 4 {
		t.Errorf("loss %q, %d routes are current", v.Loss, r.Count(control.Current))
	}
	c.pass(r, time.Hour)
	want(t, r, "an hour later", all)
}
