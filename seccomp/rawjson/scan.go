package rawjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
)

// ErrSyntax is the cause for bytes in which no JSON value can be made out.
var ErrSyntax = errors.New("not valid JSON")

// Span is the place of a value in a document: doc[Start:End]. Spans come from
// Root, Members and Elements and are never empty.
type Span struct{ Start, End int }

// Kind is the first byte of the value: '{', '[', '"', 'n' for null and so on.
func (s Span) Kind(doc []byte) byte { return doc[s.Start] }

// Root finds the document's only value. It looks at the ends alone: that they
// belong together shows when the value is walked.
func Root(doc []byte) (Span, error) {
	start, end := skipSpace(doc, 0), len(doc)
	for end > start && isSpace(doc[end-1]) {
		end--
	}
	if start == end {
		return Span{}, ErrSyntax
	}
	switch first, last := doc[start], doc[end-1]; first {
	case '{', '[':
		if end-start < 2 || last != first+2 { // '[' and ']' are two apart in ASCII, as are the braces
			return Span{}, ErrSyntax
		}
	default:
		if after, err := skipValue(doc, start); err != nil || after != end {
			return Span{}, ErrSyntax
		}
	}
	return Span{start, end}, nil
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func skipSpace(doc []byte, i int) int {
	for i < len(doc) && isSpace(doc[i]) {
		i++
	}
	return i
}

// skipValue returns the index after the value that starts at i.
func skipValue(doc []byte, i int) (int, error) {
	if i >= len(doc) {
		return 0, ErrSyntax
	}
	switch doc[i] {
	case '"':
		return skipString(doc, i)
	case '{', '[':
		return skipContainer(doc, i)
	}
	return skipScalar(doc, i)
}

// skipContainer passes an object or array. Most of what the shim reads is
// passed here, so it looks for quotes and brackets and at nothing else.
func skipContainer(doc []byte, i int) (int, error) {
	depth := 0
	for i < len(doc) {
		switch c := doc[i]; {
		case c == '"':
			end, err := skipString(doc, i)
			if err != nil {
				return 0, err
			}
			i = end
			continue
		case c|0x20 == '{': // '[' is '{' without that bit, as is ']' to '}'
			depth++
		case c|0x20 == '}':
			depth--
			if depth == 0 {
				return i + 1, nil
			}
		}
		i++
	}
	return 0, ErrSyntax
}

func skipString(doc []byte, i int) (int, error) {
	for i++; ; {
		n := bytes.IndexByte(doc[i:], '"')
		if n < 0 {
			return 0, ErrSyntax
		}
		i += n + 1
		// An even number of backslashes before the quote are themselves escaped.
		slashes := 0
		for doc[i-2-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return i, nil
		}
	}
}

// skipScalar passes a number, true, false or null.
func skipScalar(doc []byte, i int) (int, error) {
	start := i
	for i < len(doc) && (doc[i] >= '0' && doc[i] <= '9' || doc[i] >= 'a' && doc[i] <= 'z' || strings.IndexByte("+-.E", doc[i]) >= 0) {
		i++
	}
	if i == start {
		return 0, ErrSyntax
	}
	return i, nil
}

// Members visits an object's members in order. Any other value has none: null
// stands for an absent object, and the wrong kind is for others to refuse.
func Members(doc []byte, object Span, visit func(key string, value Span) error) error {
	if object.Kind(doc) != '{' {
		return nil
	}
	return items(doc, object, func(i int) (int, error) {
		if i >= len(doc) || doc[i] != '"' {
			return 0, ErrSyntax
		}
		end, err := skipString(doc, i)
		if err != nil {
			return 0, err
		}
		key, err := Text(doc, Span{i, end})
		if err != nil {
			return 0, err
		}
		i = skipSpace(doc, end)
		if i >= len(doc) || doc[i] != ':' {
			return 0, ErrSyntax
		}
		i = skipSpace(doc, i+1)
		end, err = skipValue(doc, i)
		if err != nil {
			return 0, err
		}
		return end, visit(key, Span{i, end})
	})
}

// Elements visits an array's elements in order; any other value has none.
func Elements(doc []byte, array Span, visit func(value Span) error) error {
	if array.Kind(doc) != '[' {
		return nil
	}
	return items(doc, array, func(i int) (int, error) {
		end, err := skipValue(doc, i)
		if err != nil {
			return 0, err
		}
		return end, visit(Span{i, end})
	})
}

// items walks what stands between two brackets, separated by commas. The
// function is given the start of an item and returns its end.
func items(doc []byte, s Span, item func(i int) (int, error)) error {
	last := s.End - 1
	i := skipSpace(doc, s.Start+1)
	if i == last {
		return nil
	}
	for {
		end, err := item(i)
		if err != nil {
			return err
		}
		i = skipSpace(doc, end)
		switch {
		case i == last:
			return nil
		case i > last || doc[i] != ',':
			return ErrSyntax
		}
		i = skipSpace(doc, i+1)
	}
}

// Text decodes a string value. Any other kind is an empty text.
func Text(doc []byte, s Span) (string, error) {
	raw := doc[s.Start:s.End]
	if raw[0] != '"' {
		return "", nil
	}
	plain := string(raw[1 : len(raw)-1])
	if strings.IndexByte(plain, '\\') < 0 {
		return plain, nil
	}
	var decoded string
	if err := json.Unmarshal(raw, &decoded); err != nil {
		return "", ErrSyntax
	}
	return decoded, nil
}

// Texts decodes an array of strings; elements of other kinds are left out.
func Texts(doc []byte, s Span) ([]string, error) {
	var all []string
	err := Elements(doc, s, func(value Span) error {
		if value.Kind(doc) != '"' {
			return nil
		}
		t, err := Text(doc, value)
		all = append(all, t)
		return err
	})
	return all, err
}

// Uint decodes a number that is not negative. Null is 0.
func Uint(doc []byte, s Span) (uint64, error) {
	if s.Kind(doc) == 'n' {
		return 0, nil
	}
	n, err := strconv.ParseUint(string(doc[s.Start:s.End]), 10, 64)
	if err != nil {
		return 0, ErrSyntax
	}
	return n, nil
}

// Bool is true for true; every other value is false.
func Bool(doc []byte, s Span) bool { return s.Kind(doc) == 't' }

// Quote appends a string value.
func Quote(dst []byte, s string) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
