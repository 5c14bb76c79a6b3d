//! Broken, renamed and conflicting files, without files.

use super::*;

fn rules() -> Rules {
    Rules { node_name: "n".into(), pods: PodRules { allow_object_references: true } }
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
    )
}

struct Fixture(Catalog, i64);

impl Fixture {
    fn put(&mut self, name: &str, text: &str) {
        self.1 += 1_000_000_000;
        self.0.put(name, parse_file(text.as_bytes(), &rules(), self.1));
    }

    fn images(&self) -> Vec<String> {
        let view = self.0.view(Path::new("/m"));
        let mut images: Vec<_> = view
            .pods
            .values()
            .map(|pod| format!("{} {}", pod.metadata.name, pod.spec.containers[0].image))
            .collect();
        images.sort();
        images
    }

    fn errors(&self) -> Vec<String> {
        self.0.view(Path::new("/m")).errors.iter().map(ToString::to_string).collect()
    }
}

#[test]
fn a_file_that_turned_bad_keeps_its_last_good_pods_until_it_is_mended_or_removed() {
    let mut fixture = Fixture(Catalog::default(), 0);
    fixture.put("a", &pod("a", "one"));
    fixture.put("a", "kind: [");
    assert_eq!(fixture.images(), ["a-n one"]);
    assert_eq!(fixture.errors().len(), 1);
    fixture.put("a", &pod("a", "two"));
    assert_eq!((fixture.images(), fixture.errors()), (vec!["a-n two".to_owned()], vec![]));
    fixture.put("a", "kind: [");
    fixture.0.remove("a");
    assert_eq!((fixture.images(), fixture.errors()), (vec![], vec![]));
}

#[test]
fn one_bad_object_keeps_its_whole_file_out() {
    let mut fixture = Fixture(Catalog::default(), 0);
    fixture.put("a", &format!("{}---\n{}", pod("a", "i"), pod("B", "i")));
    assert_eq!(fixture.images(), Vec::<String>::new());
    assert_eq!(fixture.errors().len(), 1);
    assert!(
        fixture.errors()[0].starts_with("/m/a: Pod \"B\" is invalid: metadata.name: Invalid value: \"B-n\"")
    );
}

#[test]
fn a_known_pod_keeps_the_time_at_which_it_was_first_seen() {
    let mut fixture = Fixture(Catalog::default(), 0);
    fixture.put("a", &pod("a", "i"));
    fixture.put("a", &format!("# same\n{}", pod("a", "i")));
    let view = fixture.0.view(Path::new("/m"));
    let (_, pod) = view.pods.iter().next().unwrap();
    assert_eq!(pod.metadata.annotations["kubernetes.io/config.seen"], "1970-01-01T00:00:01Z");
}

#[test]
fn of_two_pods_of_one_name_that_of_the_first_file_runs() {
    let mut fixture = Fixture(Catalog::default(), 0);
    fixture.put("b", &pod("web", "of-b"));
    fixture.put("a", &pod("web", "of-a"));
    assert_eq!(fixture.images(), ["web-n of-a"]);
    assert_eq!(
        fixture.errors(),
        ["/m/b: pod default/web-n is already defined in /m/a; the one of this file is ignored"]
    );
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b}";
    fixture.put("c", map);
    fixture.put("d", map);
    assert_eq!(
        fixture.errors()[1],
        "/m/d: ConfigMap default/m is already defined in /m/c; the one of this file is ignored"
    );
    fixture.0.remove("a");
    assert_eq!(fixture.images(), ["web-n of-b"]);
}
